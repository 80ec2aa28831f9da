"""Put the fingerprints of today's algorithm into packages that were made before it.

python tools/refingerprint.py models/*.target models/*.draft tests/fixtures/*.target ...

Rewrites manifests in place: fingerprints, and the ids that cover them. A backbone is
computed where a package holds its weights; packages that had the same fingerprint before
(a draft of int8 weights, an evolved target) take it over.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

from draftwire.export.sources.fingerprint import backbone_fingerprint
from draftwire.packages import tokenizer_fingerprint
from draftwire.packages.manifest import MANIFESTS, identity
from draftwire.tensors import read_tensors


def main(folders: list[Path]) -> None:
    """Rewrite the manifests of ``folders``; a base comes before what builds on it."""
    found: dict[Path, dict[str, Any]] = {}
    renamed: dict[str, str] = {}
    for folder in folders:
        name = next(n for n in MANIFESTS.values() if (folder / n).is_file())
        found[folder / name] = json.loads((folder / name).read_text(encoding="utf-8"))
    for manifest, raw in found.items():
        family, folder = raw["family"], manifest.parent
        if (folder / "tokenizer.json").is_file():
            new = tokenizer_fingerprint(folder / "tokenizer.json")
            renamed[family["tokenizer"]] = new
        if (folder / "weights.safetensors").is_file() and family["backbone"]:
            weights = read_tensors(folder / "weights.safetensors")
            renamed[family["backbone"]] = backbone_fingerprint(
                weights, weights.__getitem__, layers=raw["made"]["anchor_layers"]
            )
    for manifest, raw in sorted(found.items(), key=lambda pair: bool(pair[1].get("base"))):
        family = raw["family"]
        for key in ("backbone", "tokenizer"):
            family[key] = renamed.get(family[key], family[key])
        if raw.get("base"):
            raw["base"]["id"] = renamed.get(raw["base"]["id"], raw["base"]["id"])
        kind = next(k for k, n in MANIFESTS.items() if n == manifest.name)
        renamed[raw["id"]] = identity(kind, raw)
        text = json.dumps(raw, indent=2, ensure_ascii=False) + "\n"
        text = re.sub(r"[0-9a-f]{64}", lambda m: renamed.get(m[0], m[0]), text)
        manifest.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main([Path(word) for word in sys.argv[1:]])
