from __future__ import annotations

import os
import shutil
import ssl
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding

from ingress.authority import AuthorityError, AuthorityLimits, Delegate, Issued, LocalAuthority

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


def handshake(trusted_pem: bytes, issued: Issued, host_name: str, scratch: Path) -> str:
    """A real handshake in memory, with a client that trusts one authority: what it was told in the end, or nothing."""
    (scratch / "leaf.pem").write_bytes(issued.chain_pem + issued.key_pem)
    serving = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    serving.load_cert_chain(scratch / "leaf.pem")
    asking = ssl.create_default_context(cadata=trusted_pem.decode())
    up, down = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = asking.wrap_bio(down, up, server_hostname=host_name)
    server = serving.wrap_bio(up, down, server_side=True)
    for end in (client, server, client, server):
        with suppress(ssl.SSLWantReadError):
            end.do_handshake()
    return str(client.version())


def test_a_delegate_issues_what_clients_of_its_authority_accept(tmp_path: Path) -> None:
    authority, delegate = LocalAuthority.open(tmp_path / "ca"), Delegate()
    delegate.accept(authority.delegate(delegate.request_pem))
    assert delegate.certificate_pem == authority.certificate_pem
    issued = delegate.issue("a.localhost", "10.0.0.7")
    for name in ("a.localhost", "10.0.0.7"):
        assert handshake(authority.certificate_pem, issued, name, tmp_path) == "TLSv1.3"
    with pytest.raises(ssl.SSLCertVerificationError, match="mismatch"):
        handshake(authority.certificate_pem, issued, "b.localhost", tmp_path)
    other = LocalAuthority.open(tmp_path / "other")
    with pytest.raises(ssl.SSLCertVerificationError, match=r"self-signed|unable to get"):
        handshake(other.certificate_pem, issued, "a.localhost", tmp_path)


def test_a_delegate_makes_no_delegates(tmp_path: Path) -> None:
    authority, delegate = LocalAuthority.open(tmp_path / "ca"), Delegate()
    chain_pem = authority.delegate(delegate.request_pem)
    certificate = x509.load_pem_x509_certificates(chain_pem)[0]
    assert certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.path_length == 0
    # An authority with the delegate's certificate and key signs, and nobody believes it.
    thief, below = LocalAuthority(certificate, delegate._key), Delegate()
    below.accept(thief.delegate(below.request_pem) + chain_pem)
    with pytest.raises(ssl.SSLCertVerificationError, match="path length"):
        handshake(authority.certificate_pem, below.issue("a.localhost"), "a.localhost", tmp_path)


def test_nothing_of_a_delegate_outlives_it(tmp_path: Path) -> None:
    now_s = 1_800_000_000.0
    authority, delegate = LocalAuthority.open(tmp_path, lambda: now_s), Delegate(lambda: now_s + 25 * DAY_S)
    delegate.accept(authority.delegate(delegate.request_pem))
    assert abs(delegate.renew_at_s - (now_s + 20 * DAY_S)) < DAY_S
    issued = delegate.issue("a.localhost")
    leaf, above, _ = x509.load_pem_x509_certificates(issued.chain_pem)
    assert leaf.not_valid_after_utc == above.not_valid_after_utc
    assert now_s + 25 * DAY_S < issued.renew_at_s < now_s + 30 * DAY_S
    assert "PRIVATE" not in repr(delegate)


def test_what_is_no_request_and_no_answer_is_refused(tmp_path: Path) -> None:
    authority, delegate = LocalAuthority.open(tmp_path), Delegate()
    for wrong in (b"", b"junk", authority.certificate_pem):
        with pytest.raises(ValueError, match=r"."):
            authority.delegate(wrong)
    for wrong in (b"", b"junk", authority.certificate_pem, authority.delegate(Delegate().request_pem)):
        with pytest.raises(ValueError, match=r"."):
            delegate.accept(wrong)


def test_an_authority_from_before_there_were_delegates_gets_a_certificate_that_allows_them(tmp_path: Path) -> None:
    first = LocalAuthority.open(tmp_path)
    old = x509.load_pem_x509_certificate(first.certificate_pem)
    builder = x509.CertificateBuilder(
        old.subject, old.subject, first._key.public_key(), old.serial_number, old.not_valid_before_utc,
        old.not_valid_after_utc,
    )  # fmt: skip
    for extension in old.extensions:
        is_basic = isinstance(extension.value, x509.BasicConstraints)
        value = x509.BasicConstraints(ca=True, path_length=0) if is_basic else extension.value
        builder = builder.add_extension(value, extension.critical)
    (tmp_path / "ca.pem").write_bytes(builder.sign(first._key, hashes.SHA256()).public_bytes(Encoding.PEM))
    authority, delegate = LocalAuthority.open(tmp_path), Delegate()
    delegate.accept(authority.delegate(delegate.request_pem))
    assert handshake(authority.certificate_pem, delegate.issue("a.localhost"), "a.localhost", tmp_path) == "TLSv1.3"
