"""Writes the alerts for Kubernetes (components/monitoring) from deploy/prometheus/rules. Run by `make protos`.

Each file of rules becomes one PrometheusRule of prometheus-operator's, word for word.
"""

from pathlib import Path
from textwrap import indent

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "deploy" / "prometheus" / "rules"
RESOURCES = ROOT / "deploy" / "kubernetes" / "components" / "monitoring" / "prometheus-rules.yaml"


def resource(path: Path) -> str:
    """One file of rules as a PrometheusRule, comments included."""
    kind = "apiVersion: monitoring.coreos.com/v1\nkind: PrometheusRule\n"
    return f"{kind}metadata: {{ name: tokenwire-{path.stem} }}\nspec:\n" + indent(path.read_text(), "  ")


def resources() -> str:
    """All of them, as one file."""
    made = "# Made by scripts/prometheus_rules.py (make protos) from deploy/prometheus/rules: change them there.\n"
    return made + "---\n".join(resource(path) for path in sorted(FOLDER.glob("*.yml")))


if __name__ == "__main__":
    RESOURCES.write_text(resources())
