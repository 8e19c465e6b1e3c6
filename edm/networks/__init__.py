"""The U-Nets of Table 8 (DDPM++, NCSN++, ADM) as one configurable network, its precision and its FLOPs."""
