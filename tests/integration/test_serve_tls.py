"""Test `--tls-cert` and `--tls-key` with certificates that OpenSSL's command makes."""

from __future__ import annotations

import os
import shutil
import signal
import ssl
import subprocess
import time
from pathlib import Path

import httpx2
import openai
import pytest

from finetale.cli import run
from serving import Serving
from tiny import save_model

pytestmark = pytest.mark.skipif(shutil.which("openssl") is None, reason="needs the command openssl")


def make(folder: Path, name: str, *words: str) -> tuple[Path, Path]:
    """Write a certificate for 127.0.0.1 and its key."""
    certificate, key = folder / f"{name}.pem", folder / f"{name}.key"
    options = ["-days", "2", "-subj", f"/CN={name}", "-addext", "subjectAltName=IP:127.0.0.1", *(words or ("-nodes",))]
    made = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-keyout", str(key), "-out", str(certificate)]
    subprocess.run(["openssl", "req", "-x509", *made, *options], check=True, capture_output=True)
    key.chmod(0o600)
    return certificate, key


def name_of_certificate(port: int) -> str:
    """Return the certificate that the service sends, in PEM."""
    return ssl.get_server_certificate(("127.0.0.1", port), timeout=20)


def test_a_service_with_tls(tmp_path: Path) -> None:
    save_model(tmp_path / "tiny")
    certificate, key = make(tmp_path, "one")
    key.chmod(0o644)
    words = ("--engine", "torch", "--tls-cert", "one.pem", "--tls-key", "one.key")
    with Serving(tmp_path, "tiny", *words) as serving:
        assert serving.line.rstrip().endswith("(press Ctrl-C to stop)")
        assert f" at https://127.0.0.1:{serving.port}/v1 " in serving.line
        assert f"chmod 600 {key}" in serving.log().replace("\n", " ")
        trusted = ssl.create_default_context(cafile=str(certificate))
        with (
            httpx2.Client(verify=trusted, trust_env=False) as http,
            openai.OpenAI(base_url=f"https://127.0.0.1:{serving.port}/v1", api_key="none", http_client=http) as client,
        ):
            chunks = list(client.completions.create(model="tiny", prompt="The", max_tokens=9, stream=True))
            assert len(chunks) > 2
        with pytest.raises(httpx2.ConnectError):
            httpx2.get(f"https://127.0.0.1:{serving.port}/health", trust_env=False)
        with pytest.raises(httpx2.HTTPError):
            httpx2.get(f"http://127.0.0.1:{serving.port}/health", trust_env=False)
        # A reload reads renewed files. Files that do not belong together change nothing.
        before = name_of_certificate(serving.port)
        assert before == certificate.read_text()
        newer, _ = make(tmp_path, "two")
        shutil.copy(newer, certificate)
        reload(serving, "stays as it was: The key")
        assert name_of_certificate(serving.port) == before
        shutil.copy(tmp_path / "two.key", key)
        reload(serving, "has been read again")
        assert name_of_certificate(serving.port) == newer.read_text()
        assert serving.end()[0] == 0


def reload(serving: Serving, said: str) -> None:
    serving.process.send_signal(signal.SIGHUP)
    ends = time.monotonic() + 20
    while said not in serving.log():
        assert time.monotonic() < ends, serving.log()
        time.sleep(0.05)


def test_files_are_checked_before_the_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    make(tmp_path, "one")
    make(tmp_path, "two")
    make(tmp_path, "secret", "-passout", "pass:word")
    (tmp_path / "text.pem").write_text("no certificate")
    cases = [
        (["--tls-cert", "one.pem"], "--tls-cert needs --tls-key."),
        (["--tls-key", "one.key"], "--tls-key needs --tls-cert."),
        (["--tls-cert", "none.pem", "--tls-key", "one.key"], "none.pem of --tls-cert can't be read: No such file"),
        (["--tls-cert", "one.pem", "--tls-key", "none.key"], "none.key of --tls-key can't be read: No such file"),
        (["--tls-cert", "one.pem", "--tls-key", "two.key"], "does not belong to the certificate"),
        (["--tls-cert", "secret.pem", "--tls-key", "secret.key"], "secret.key has a password."),
        (["--tls-cert", "text.pem", "--tls-key", "one.key"], "are not a certificate and its key in PEM"),
        (["--tls-cert", "one.pem", "--tls-key", "text.pem"], "are not a certificate and its key in PEM"),
    ]
    if os.geteuid() != 0:
        (tmp_path / "one.key").chmod(0)
        cases.append((["--tls-cert", "one.pem", "--tls-key", "one.key"], "Permission denied"))
    for words, said in cases:
        assert run(["serve", "no-such-model", *words]) == 1
        assert said in " ".join(capsys.readouterr().err.split())
