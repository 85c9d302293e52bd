"""A certificate authority of one's own, made at the first start. The only file that imports `cryptography`.

It lets `./dev serve` and private clusters speak real TLS: an operator trusts `ca.pem` once, and every worker's host
name has a certificate. Its key never leaves its directory, which belongs to the operator alone (0700, the key 0600).

Several processes may start at once on one machine. All take a lock on one file; the first makes the pair and the
others load it. The key is written before the certificate and each is renamed into place whole, so a process that dies
in between leaves a key without certificate, which the next one replaces.

The authority's certificate lives ten years. When less than a third is left it is written anew with the same key and
name: leaves made since are valid under the old certificate as well, so nobody has to trust a new one at once.

On several machines the key stays on one. Each edge makes a key of its own and asks for a certificate for it, which
lets it issue leaves itself (`Delegate`): nothing secret travels or is written anywhere, a handshake waits for nobody,
and the edges go on while the authority is away. A delegate lives for a month, so one that was stolen is of no use for
long.
"""

from __future__ import annotations

import fcntl
import ipaddress
import os
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

CERTIFICATE_FILE: Final = "ca.pem"
KEY_FILE: Final = "ca.key"
_LOCK_FILE: Final = "ca.lock"


@dataclass(frozen=True, slots=True)
class AuthorityLimits:
    """How long things live."""

    authority_days: int = 3_650  # trusting an authority is manual work; ten years is one machine's life
    leaf_days: int = 90  # what public authorities give, and short enough that renewal is exercised
    delegate_days: int = 30  # the authority may be away for the last ten of them
    renew_fraction: float = 1 / 3  # renew when less than this part of a life is left
    clock_skew_s: int = 3_600  # certificates are valid from an hour ago: clients' clocks are behind, too
    names_max: int = 16  # in one leaf


_LIMITS: Final = AuthorityLimits()


class AuthorityError(Exception):
    """The authority's files can not be used; the message names the file, not its directory."""


@dataclass(frozen=True, slots=True)
class Issued:
    """A leaf: its chain (leaf, then the authority) and key in PEM, and when to ask for the next, in Unix seconds."""

    chain_pem: bytes
    key_pem: bytes
    renew_at_s: float

    def __repr__(self) -> str:  # the key stays out of logs
        return f"<Issued, renew at {self.renew_at_s:.0f}>"


class LocalAuthority:
    """See the module's docstring. Made by `LocalAuthority.open`."""

    def __init__(
        self,
        certificate: x509.Certificate,
        key: ec.EllipticCurvePrivateKey,
        now_s: Callable[[], float] = time.time,
        limits: AuthorityLimits = _LIMITS,
    ) -> None:
        self._certificate = certificate
        self._key = key
        self._now_s = now_s
        self._limits = limits

    @classmethod
    def open(
        cls, directory: Path, now_s: Callable[[], float] = time.time, limits: AuthorityLimits = _LIMITS
    ) -> LocalAuthority:
        """Loads the authority in `directory`, or makes both. `now_s` gives Unix time.

        Raises AuthorityError when the files are there and unusable: somebody may trust that authority, so it is not
        replaced behind their back.
        """
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        directory.chmod(0o700)
        certificate_path, key_path = directory / CERTIFICATE_FILE, directory / KEY_FILE
        with _locked(directory / _LOCK_FILE):
            if certificate_path.exists():
                key = _read_key(key_path)
                certificate = _read_certificate(certificate_path, key)
                if _renew_at(certificate, limits.renew_fraction) <= now_s() or not _may_delegate(certificate):
                    certificate = _self_signed(key, certificate.subject, now_s(), limits)
                    _write(certificate_path, certificate.public_bytes(serialization.Encoding.PEM), 0o644)
            else:
                key = ec.generate_private_key(ec.SECP256R1())
                # The random part keeps two authorities in one trust store apart.
                name = x509.Name(
                    [x509.NameAttribute(NameOID.COMMON_NAME, f"Everwarm local authority {secrets.token_hex(4)}")]
                )
                certificate = _self_signed(key, name, now_s(), limits)
                _write(key_path, _key_pem(key), 0o600)
                _write(certificate_path, certificate.public_bytes(serialization.Encoding.PEM), 0o644)
        return cls(certificate, key, now_s, limits)

    @property
    def certificate_pem(self) -> bytes:
        """What a client has to trust."""
        return self._certificate.public_bytes(serialization.Encoding.PEM)

    def issue(self, host_name: str, *more: str) -> Issued:
        """A new key and certificate for `host_name`: exact, or a wildcard `*.example.com`, or an IP address.

        `more` are further names in the same certificate. About a millisecond of CPU, so callers decide for which
        names it is spent. Raises ValueError when a name is none.
        """
        return _leaf(self._certificate, self._key, self.certificate_pem, (host_name, *more), self._now_s, self._limits)

    def delegate(self, request_pem: bytes) -> bytes:
        """Lets an edge issue: the chain for a `Delegate`'s request, its certificate first and this authority's last.

        Whoever may ask may issue for every name. Raises ValueError for anything but a request of a `Delegate`.
        """
        request = x509.load_pem_x509_csr(request_pem)
        key = request.public_key()
        if not request.is_signature_valid or not isinstance(key, ec.EllipticCurvePublicKey):
            raise ValueError("request: not signed with its own elliptic-curve key")
        now = datetime.fromtimestamp(self._now_s(), UTC)
        # The random part tells edges apart; the name that was asked for is not taken on.
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"Everwarm edge {secrets.token_hex(4)}")])
        days = timedelta(days=self._limits.delegate_days)
        certificate = (
            _issued_under(self._certificate, name, key, now, now + days, self._limits)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_key_usage(signs_certificates=True), critical=True)
            .sign(self._key, hashes.SHA256())
        )
        return certificate.public_bytes(serialization.Encoding.PEM) + self.certificate_pem

    def __repr__(self) -> str:
        return f"<LocalAuthority {self._certificate.subject.rfc4514_string()}>"


class Delegate:
    """An edge that issues in the name of an authority elsewhere. Its key is in this process's memory and nowhere else.

    Give `request_pem` to the authority's `delegate`, and what comes of it to `accept`; again when `renew_at_s` is over.
    """

    def __init__(self, now_s: Callable[[], float] = time.time, limits: AuthorityLimits = _LIMITS) -> None:
        self._now_s = now_s
        self._limits = limits
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._certificate: x509.Certificate | None = None
        self._chain_pem = b""
        self.certificate_pem = b""  # what a client has to trust: the authority's
        self.renew_at_s = 0.0

    @property
    def request_pem(self) -> bytes:
        """What the authority signs."""
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Everwarm edge")])
        request = x509.CertificateSigningRequestBuilder().subject_name(name).sign(self._key, hashes.SHA256())
        return request.public_bytes(serialization.Encoding.PEM)

    def accept(self, chain_pem: bytes) -> None:
        """Issue under this chain from now on. Raises ValueError when it is not for this edge's key."""
        certificate, *above = x509.load_pem_x509_certificates(chain_pem)
        if certificate.public_key() != self._key.public_key() or not above:
            raise ValueError("chain: not what this edge asked for")
        self._certificate, self._chain_pem = certificate, chain_pem
        self.certificate_pem = above[-1].public_bytes(serialization.Encoding.PEM)
        self.renew_at_s = _renew_at(certificate, self._limits.renew_fraction)

    def issue(self, host_name: str, *more: str) -> Issued:
        """As `LocalAuthority.issue`. A leaf lives no longer than the delegate that made it."""
        assert self._certificate is not None, "nothing was accepted yet"
        return _leaf(self._certificate, self._key, self._chain_pem, (host_name, *more), self._now_s, self._limits)

    def __repr__(self) -> str:
        return f"<Delegate, renew at {self.renew_at_s:.0f}>"


def _leaf(
    issuer: x509.Certificate,
    issuer_key: ec.EllipticCurvePrivateKey,
    chain_pem: bytes,
    names: tuple[str, ...],
    now_s: Callable[[], float],
    limits: AuthorityLimits,
) -> Issued:
    if len(names) > limits.names_max:
        raise ValueError(f"names: {len(names)} are more than {limits.names_max}")
    key = ec.generate_private_key(ec.SECP256R1())
    now = datetime.fromtimestamp(now_s(), UTC)
    until = min(now + timedelta(days=limits.leaf_days), issuer.not_valid_after_utc)
    # Clients read the alternative names only; a fixed subject has no length limit to run into.
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Everwarm worker")])
    certificate = (
        _issued_under(issuer, subject, key.public_key(), now, until, limits)
        .add_extension(x509.SubjectAlternativeName([_general_name(name) for name in names]), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(signs_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .sign(issuer_key, hashes.SHA256())
    )
    chain = certificate.public_bytes(serialization.Encoding.PEM) + chain_pem
    return Issued(chain, _key_pem(key), _renew_at(certificate, limits.renew_fraction))


def _issued_under(
    issuer: x509.Certificate,
    subject: x509.Name,
    key: ec.EllipticCurvePublicKey,
    now: datetime,
    until: datetime,
    limits: AuthorityLimits,
) -> x509.CertificateBuilder:
    """What every certificate has that another one vouches for."""
    issuer_key_id = issuer.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer.subject)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(seconds=limits.clock_skew_s))
        .not_valid_after(until)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(issuer_key_id), critical=False)
    )


def _may_delegate(certificate: x509.Certificate) -> bool:
    """Whether a certificate below it may vouch for others."""
    return certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.path_length != 0


def _self_signed(
    key: ec.EllipticCurvePrivateKey, name: x509.Name, now_s: float, limits: AuthorityLimits
) -> x509.Certificate:
    now = datetime.fromtimestamp(now_s, UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(seconds=limits.clock_skew_s))
        .not_valid_after(now + timedelta(days=limits.authority_days))
        .add_extension(x509.BasicConstraints(ca=True, path_length=1), critical=True)  # edges, and their leaves
        .add_extension(_key_usage(signs_certificates=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )


def _key_usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _general_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        pass
    bare = name.removeprefix("*.")
    if not bare or not bare.isascii() or any(c in bare for c in "* /:@") or len(name) > 253:
        raise ValueError("host_name: must be a host name, *. and a host name, or an IP address")
    return x509.DNSName(name)


def _renew_at(certificate: x509.Certificate, fraction: float) -> float:
    start, end = certificate.not_valid_before_utc.timestamp(), certificate.not_valid_after_utc.timestamp()
    return end - (end - start) * fraction


def _key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _read_key(path: Path) -> ec.EllipticCurvePrivateKey:
    try:
        path.chmod(0o600)
        key = serialization.load_pem_private_key(path.read_bytes(), password=None)
    except (OSError, ValueError, TypeError):
        raise AuthorityError(f"{path.name} is missing or is no private key") from None
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise AuthorityError(f"{path.name} is no elliptic-curve key")
    return key


def _read_certificate(path: Path, key: ec.EllipticCurvePrivateKey) -> x509.Certificate:
    try:
        certificate = x509.load_pem_x509_certificate(path.read_bytes())
    except (OSError, ValueError):
        raise AuthorityError(f"{path.name} is no certificate") from None
    if certificate.public_key() != key.public_key():
        raise AuthorityError(f"{path.name} does not belong to {KEY_FILE}")
    return certificate


def _write(path: Path, content: bytes, mode: int) -> None:
    """Whole or not at all, also across a power cut. The lock is held, so one fixed temporary name is enough."""
    temporary = path.with_name(path.name + ".new")
    temporary.unlink(missing_ok=True)
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    with open(descriptor, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(descriptor)
    temporary.replace(path)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Waits while another process holds the lock: the few milliseconds of making two files."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)  # gives the lock back
