#!/usr/bin/env python3
"""Makes cli/kv_table.json, the table of --kv-quality and --kv-bits for models that were never tuned.

    for m in smollm2-135m qwen2.5-coder-0.5b qwen2.5-coder-1.5b; do mikv tune -m $m --text FILE --chunks 3 -o $m.json; done
    scripts/merge_tuning.py *.json

Of each cache it takes the worst of the models: most bits per element, largest divergence."""

import argparse
import json
from pathlib import Path

TABLE = Path(__file__).parent.parent / "cli" / "kv_table.json"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE.json", help="as `mikv tune` wrote it")
    parser.add_argument("-o", "--output", type=Path, default=TABLE, help="(default: cli/kv_table.json)")
    options = parser.parse_args()

    reports = [json.loads(file.read_text()) for file in options.files]
    tables = [{row["kv"]: row for row in report["rows"]} for report in reports]
    for file, table in zip(options.files, tables):
        if table.keys() != tables[0].keys():
            parser.error(f"{file} has other caches than {options.files[0]}; tune both with the same version")
    rows = [{"kv": kv, **{name: round(max(table[kv][name] for table in tables), digits) for name, digits in (("bits_per_element", 3), ("mean", 4))}} for kv in tables[0]]
    meta = {
        "fingerprint": "",
        "made_by": "scripts/merge_tuning.py: of each cache the worst of the models",
        "models": [Path(report["meta"]["model"]).stem for report in reports],
    }
    options.output.write_text(json.dumps({"meta": meta, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
