"""The sandbox container's seccomp profile: Docker's default, and exactly what bubblewrap needs."""

from __future__ import annotations

import json
from pathlib import Path

PROFILE = Path(__file__).parents[2] / "serving" / "sandbox-seccomp.json"
ADDED = {"clone", "mount", "pivot_root", "sethostname", "umount2"}


def test_only_five_calls_are_added_to_dockers_default():
    profile = json.loads(PROFILE.read_text())
    assert profile["defaultAction"] == "SCMP_ACT_ERRNO"
    added = [rule for rule in profile["syscalls"] if rule.get("comment", "").startswith("Added to Docker's default")]
    assert {name for rule in added for name in rule["names"]} == ADDED
    (clone,) = (rule for rule in added if "clone" in rule["names"])
    assert clone["args"] == [{"index": 0, "value": 0x10000000, "valueTwo": 0x10000000, "op": "SCMP_CMP_MASKED_EQ"}], (
        "a user namespace, and others only with it"
    )
    allowed = {
        name
        for rule in profile["syscalls"]
        if rule["action"] == "SCMP_ACT_ALLOW" and rule not in added and "caps" not in rule.get("includes", {})
        for name in rule["names"]
    }
    assert len(allowed) > 300 and not allowed & {
        "mount",
        "unshare",
        "setns",
        "pivot_root",
        "bpf",
        "keyctl",
        "kexec_load",
    }
