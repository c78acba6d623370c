"""Eight-bit integers in the place of 32-bit floats: calibrated, checked layer by layer, or learnt."""
