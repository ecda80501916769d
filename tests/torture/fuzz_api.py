"""Let schemathesis make requests from DigitalOcean's own description for the sandbox: it must find nothing.

    pip install schemathesis; python -m tests.torture.fuzz_api [EXAMPLES]

Only what the sandbox plays is asked for. Warnings about data that is not there (404) and bodies that are refused (422)
are expected: random ids name nothing, and the API's rules are stricter than its description.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from chisel.sandbox.pytest import sandbox

SHARED = Path(__file__).resolve().parents[3] / "shared"
PLAYED = {
    "/v2/account": ["get"],
    "/v2/account/keys": ["get", "post"],
    "/v2/account/keys/{ssh_key_identifier}": ["get", "delete"],
    "/v2/actions": ["get"],
    "/v2/actions/{action_id}": ["get"],
    "/v2/customers/my/balance": ["get"],
    "/v2/droplets": ["get", "post", "delete"],
    "/v2/droplets/{droplet_id}": ["get", "delete"],
    "/v2/droplets/{droplet_id}/actions": ["get", "post"],
    "/v2/droplets/{droplet_id}/actions/{action_id}": ["get"],
    "/v2/images": ["get"],
    "/v2/images/{image_id}": ["get"],
    "/v2/regions": ["get"],
    "/v2/sizes": ["get"],
    "/v2/tags": ["get", "post"],
    "/v2/tags/{tag_id}": ["get", "delete"],
    "/v2/tags/{tag_id}/resources": ["post", "delete"],
}
CHECKS = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"


def described() -> dict[str, Any]:
    """Return the description of what the sandbox plays; a key's id is marked readOnly there by mistake."""
    found: dict[str, Any] = json.loads((SHARED / "contract" / "do-openapi.json").read_text())
    paths = found["paths"]
    found["paths"] = {
        path: {
            name: {key: value for key, value in part.items() if key != "servers"} if isinstance(part, dict) else part
            for name, part in paths[path].items()
            if name in methods or name == "parameters"
        }
        for path, methods in PLAYED.items()
    }
    for name in ("ssh_key_id", "ssh_key_fingerprint"):
        found["components"]["schemas"][name].pop("readOnly", None)
    found.pop("servers", None)
    return found


def main(examples: int) -> int:
    program = shutil.which("st") or shutil.which("schemathesis")
    if program is None or not SHARED.is_dir():
        print("schemathesis, or the description, is not here")
        return 2
    limits = {"per_minute": 10**7, "per_hour": 10**7, "key_lists_per_minute": 10**7, "droplet_limit": 10**6}
    with tempfile.TemporaryDirectory() as scratch, sandbox(Path(scratch) / "cloud", **limits) as cloud:
        file = Path(scratch) / "description.json"
        file.write_text(json.dumps(described()))
        command = [program, "run", str(file), "--url", cloud.url, "--header", f"Authorization: Bearer {cloud.token}"]
        command += ["--phases", "examples,coverage,fuzzing", "--checks", CHECKS, "--continue-on-failure"]
        return subprocess.run([*command, "--max-examples", str(examples)], check=False).returncode


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]) if len(sys.argv) > 1 else 200))
