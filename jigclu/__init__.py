"""JigClu: self-supervised visual pre-training by jigsaw clustering (CVPR 2021)."""

from typing import TYPE_CHECKING, Any

__version__ = "0.3.0"

__all__ = [
    "FeatureExtractor",
    "Features",
    "UserError",
    "__version__",
    "extract_features",
    "load_encoder",
    "pretrain",
]

if TYPE_CHECKING:
    from jigclu.api import (
        FeatureExtractor,
        Features,
        UserError,
        extract_features,
        load_encoder,
        pretrain,
    )
else:

    def __getattr__(name: str) -> Any:
        # Imports torch only when a name is used: importing any module of the package runs this one.
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from jigclu import api

        return getattr(api, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
