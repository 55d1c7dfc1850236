"""ImageBind's vision, audio and text towers (facebookresearch/ImageBind; Girdhar et al., 2023)."""

from avloc.backbones.imagebind.config import AudioConfig, ImageBindConfig, VisionConfig
from avloc.backbones.imagebind.model import ImageBind, pieces
from avloc.backbones.tokens import TextConfig

__all__ = ["AudioConfig", "ImageBind", "ImageBindConfig", "TextConfig", "VisionConfig", "pieces"]
