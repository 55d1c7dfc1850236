"""AudioCLIP: CLIP's ResNet-50 and text transformer with an audio tower beside them.

The official files, full and partial training, load unchanged. Each tower gives one embedding, and tokens of the same
width: patches of the picture, positions of the text, time-frequency tiles of the sound. T-VSL's way to read the
patches is an option of `ImageTower.tokens`.
"""

from avloc.backbones.audioclip.audio import AudioConfig, AudioTower
from avloc.backbones.audioclip.image import ImageConfig, ImageTower, Positions
from avloc.backbones.audioclip.model import INT16, WORLD, AudioCLIP, AudioCLIPConfig
from avloc.backbones.audioclip.text import TextTower
from avloc.backbones.tokens import TextConfig

__all__ = [
    "INT16",
    "WORLD",
    "AudioCLIP",
    "AudioCLIPConfig",
    "AudioConfig",
    "AudioTower",
    "ImageConfig",
    "ImageTower",
    "Positions",
    "TextConfig",
    "TextTower",
]
