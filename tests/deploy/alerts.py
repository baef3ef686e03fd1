"""The rules of deploy/prometheus as their files have them."""

from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "deploy" / "prometheus"
FILES = sorted((FOLDER / "rules").glob("*.yml"))
GROUPS: list[dict[str, Any]] = [group for file in FILES for group in yaml.safe_load(file.read_text())["groups"]]
RULES: list[dict[str, Any]] = [rule for group in GROUPS for rule in group["rules"]]
ALERTS = {rule["alert"]: rule for rule in RULES if "alert" in rule}
