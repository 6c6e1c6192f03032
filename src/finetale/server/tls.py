"""TLS by files: a certificate and its key, checked before anything is loaded. Knows no routes."""

from __future__ import annotations

import logging
import os
import ssl
import stat
from dataclasses import dataclass
from pathlib import Path

from finetale.errors import ConfigError

_log = logging.getLogger("finetale.server")


@dataclass(frozen=True)
class Tls:
    """A certificate and its key.

    Attributes:
        certificate: PEM file with the certificate, and those of the authorities between it and the root.
        key: PEM file with its private key, without a password.
    """

    certificate: Path
    key: Path

    @classmethod
    def of(cls, certificate: Path | None, key: Path | None) -> Tls | None:
        """Return the files of --tls-cert and --tls-key, checked; None without both.

        Raises:
            ConfigError: one is missing, or they can't be used.
        """
        if certificate is None and key is None:
            return None
        if certificate is None or key is None:
            given, other = ("--tls-cert", "--tls-key") if key is None else ("--tls-key", "--tls-cert")
            raise ConfigError(f"{given} needs {other}.", f"Set both, or leave out {given}.")
        tls = cls(certificate.expanduser().absolute(), key.expanduser().absolute())
        tls.load(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER))
        return tls

    @property
    def is_key_public(self) -> bool:
        """Whether every user of this machine may read the key."""
        return os.name == "posix" and bool(self.key.stat().st_mode & stat.S_IROTH)

    def load(self, context: ssl.SSLContext) -> None:
        """Read the files, for new connections of a context.

        Raises:
            ConfigError: they can't be read, or they do not belong together.
        """
        for path, option in ((self.certificate, "--tls-cert"), (self.key, "--tls-key")):
            try:
                with path.open("rb"):
                    pass
            except OSError as error:
                raise ConfigError(
                    f"The file {path} of {option} can't be read: {error.strerror}.",
                    "Check its permissions." if isinstance(error, PermissionError) else f"Check the path of {option}.",
                ) from None

        def ask() -> bytes:
            raise ConfigError(
                f"The key {self.key} has a password.",
                "Write it without one, readable for this user only: openssl pkey -in KEY -out NEW.",
            )

        try:
            context.load_cert_chain(self.certificate, self.key, ask)
        except ssl.SSLError as error:
            if error.reason == "KEY_VALUES_MISMATCH":
                raise ConfigError(
                    f"The key {self.key} does not belong to the certificate {self.certificate}.",
                    "Give --tls-cert and --tls-key files that were made together.",
                ) from None
            raise ConfigError(
                f"{self.certificate} and {self.key} are not a certificate and its key in PEM"
                + (f" ({error.reason})." if error.reason else "."),
                "PEM files have lines as -----BEGIN CERTIFICATE----- and -----BEGIN PRIVATE KEY-----.",
            ) from None

    def reload(self, context: ssl.SSLContext) -> None:
        """Read the files again. On failure, log the error and keep the old certificate."""
        try:
            # In a context of its own first: a failure may leave half of the new files.
            self.load(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER))
            self.load(context)
        except ConfigError as error:
            _log.error("the certificate could not be reloaded and stays as it was: %s", error)
        else:
            _log.info("the certificate has been read again")
