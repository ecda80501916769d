"""Make the certificate by which the droplets of one relay know each other: used for one stream, kept by nobody."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime

_ALWAYS = datetime(2000, 1, 1, tzinfo=UTC), datetime(9999, 1, 1, tzinfo=UTC)
"""A droplet's clock may be wrong, and what ends the certificate is that nobody has its key any more."""


@dataclass(frozen=True, slots=True)
class RelayKey:
    """A certificate and its private key, both PEM."""

    certificate: str
    key: str = field(repr=False)


def make_relay_key() -> RelayKey:
    """Make a P-256 key and a certificate that it signs itself. CPU, about a millisecond: call it in a thread."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import NameOID

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "chisel relay")])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(_ALWAYS[0])
        .not_valid_after(_ALWAYS[1])
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return RelayKey(certificate.public_bytes(serialization.Encoding.PEM).decode("ascii"), private.decode("ascii"))
