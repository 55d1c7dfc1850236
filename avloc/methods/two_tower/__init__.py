"""Two towers: LVS, EZ-VSL, MarginNCE, SLAVC, SSL-TIE, FNAC and Alignment."""

from avloc.methods.two_tower.method import EZVSL, FNAC, LVS, SLAVC, SSLTIE, Alignment

__all__ = ["EZVSL", "FNAC", "LVS", "SLAVC", "SSLTIE", "Alignment"]
