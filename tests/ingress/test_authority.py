from __future__ import annotations

import os
import shutil
import ssl
import subprocess
import sys
from pathlib import Path

import pytest
from cryptography import x509

from ingress.authority import AuthorityError, AuthorityLimits, Issued, LocalAuthority

REPOSITORY = Path(__file__).resolve().parents[2]
DAY_S = 86_400


def leaf_of(issued: Issued) -> x509.Certificate:
    return x509.load_pem_x509_certificates(issued.chain_pem)[0]


def test_the_first_start_makes_it_and_the_next_ones_load_it(tmp_path: Path) -> None:
    directory = tmp_path / "state" / "ca"
    first = LocalAuthority.open(directory)
    assert first.certificate_pem == (directory / "ca.pem").read_bytes()
    assert {path.name: path.stat().st_mode & 0o777 for path in directory.iterdir()} == {
        "ca.pem": 0o644,
        "ca.key": 0o600,
        "ca.lock": 0o600,
    }
    assert directory.stat().st_mode & 0o777 == 0o700
    os.chmod(directory / "ca.key", 0o644)
    assert LocalAuthority.open(directory).certificate_pem == first.certificate_pem
    assert (directory / "ca.key").stat().st_mode & 0o777 == 0o600


def test_three_processes_starting_at_once_make_one(tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from ingress.authority import LocalAuthority\n"
        "print('ready', flush=True); sys.stdin.readline()\n"
        "authority = LocalAuthority.open(Path(sys.argv[1])); authority.issue('a.example')\n"
        "sys.stdout.write(authority.certificate_pem.decode())"
    )
    starters = [
        subprocess.Popen(
            [sys.executable, "-c", program, str(tmp_path / "ca")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        )
        for _ in range(3)
    ]
    for starter in starters:
        assert starter.stdout is not None
        assert starter.stdout.readline() == "ready\n"
    seen = {starter.communicate("go\n")[0] for starter in starters}
    assert seen == {(tmp_path / "ca" / "ca.pem").read_text()}


@pytest.mark.parametrize("name", ["hello.example.com", "*.example.com", "worker.localhost"])
def test_a_leaf_says_what_strict_clients_ask_for(tmp_path: Path, name: str) -> None:
    now_s = 1_800_000_000.0
    leaf = leaf_of(LocalAuthority.open(tmp_path, lambda: now_s).issue(name, "127.0.0.1"))
    assert (leaf.not_valid_after_utc.timestamp() - now_s) == 90 * DAY_S
    assert leaf.not_valid_before_utc.timestamp() < now_s
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == [name]
    assert [str(address) for address in names.get_values_for_type(x509.IPAddress)] == ["127.0.0.1"]
    assert leaf.extensions.get_extension_for_class(x509.BasicConstraints).critical
    assert not leaf.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    assert leaf.extensions.get_extension_for_class(x509.KeyUsage).value.digital_signature
    assert leaf.extensions.get_extension_for_class(x509.AuthorityKeyIdentifier)


@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs the openssl command")
def test_openssl_accepts_it_strictly(tmp_path: Path) -> None:
    authority = LocalAuthority.open(tmp_path / "ca")
    (tmp_path / "leaf.pem").write_bytes(authority.issue("*.example.com").chain_pem)
    verify = ["openssl", "verify", "-x509_strict", "-purpose", "sslserver", "-CAfile", "ca/ca.pem"]
    for host, accepted in (("a.example.com", True), ("a.b.example.com", False), ("example.org", False)):
        done = subprocess.run([*verify, "-verify_hostname", host, "leaf.pem"], cwd=tmp_path, capture_output=True)
        assert (done.returncode == 0) is accepted, done


def test_a_leaf_is_to_be_renewed_when_a_third_is_left(tmp_path: Path) -> None:
    issued = LocalAuthority.open(tmp_path, lambda: 1_800_000_000.0).issue("a.example")
    assert abs(issued.renew_at_s - (1_800_000_000 + 60 * DAY_S)) < DAY_S
    assert "PRIVATE" in issued.key_pem.decode()
    assert "PRIVATE" not in repr(issued)


def test_an_ageing_authority_is_renewed_under_the_same_key(tmp_path: Path) -> None:
    now_s = 1_800_000_000.0
    limits = AuthorityLimits(authority_days=300)
    old = LocalAuthority.open(tmp_path, lambda: now_s, limits)
    assert LocalAuthority.open(tmp_path, lambda: now_s + 190 * DAY_S, limits).certificate_pem == old.certificate_pem
    new = LocalAuthority.open(tmp_path, lambda: now_s + 210 * DAY_S, limits)
    assert new.certificate_pem != old.certificate_pem
    # A client that trusts the old certificate accepts a leaf of the new one.
    old_certificate = x509.load_pem_x509_certificate(old.certificate_pem)
    leaf_of(new.issue("a.example")).verify_directly_issued_by(old_certificate)


def test_a_death_between_key_and_certificate_is_repaired(tmp_path: Path) -> None:
    first = LocalAuthority.open(tmp_path)
    (tmp_path / "ca.pem").unlink()
    (tmp_path / "ca.pem.new").write_text("half")
    assert LocalAuthority.open(tmp_path).certificate_pem != first.certificate_pem


@pytest.mark.parametrize("wrong", [b"", b"junk"])
@pytest.mark.parametrize("file", ["ca.pem", "ca.key"])
def test_files_that_can_not_be_used_are_not_replaced(tmp_path: Path, file: str, wrong: bytes) -> None:
    LocalAuthority.open(tmp_path)
    (tmp_path / file).write_bytes(wrong)
    with pytest.raises(AuthorityError, match=file) as refused:
        LocalAuthority.open(tmp_path)
    assert str(tmp_path) not in str(refused.value)
    assert (tmp_path / file).read_bytes() == wrong


def test_a_key_of_another_authority_is_refused(tmp_path: Path) -> None:
    for name in ("one", "other"):
        LocalAuthority.open(tmp_path / name)
    shutil.copy(tmp_path / "other" / "ca.key", tmp_path / "one" / "ca.key")
    with pytest.raises(AuthorityError, match="does not belong"):
        LocalAuthority.open(tmp_path / "one")


@pytest.mark.parametrize("name", ["", "*", "*.", "*.*.a", "a b", "a/b", "bücher.example", "http://a", "a" * 254])
def test_names_that_are_none(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match="host_name"):
        LocalAuthority.open(tmp_path).issue(name)


def test_a_leaf_has_a_bounded_number_of_names(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="17 are more than 16"):
        LocalAuthority.open(tmp_path).issue(*(f"{number}.example" for number in range(17)))


def test_ssl_loads_what_is_issued(tmp_path: Path) -> None:
    authority = LocalAuthority.open(tmp_path / "ca")
    issued = authority.issue("a.example")
    (tmp_path / "a.pem").write_bytes(issued.chain_pem + issued.key_pem)
    ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(tmp_path / "a.pem")
