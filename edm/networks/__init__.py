"""The U-Nets of Table 8 (DDPM++, NCSN++, ADM) as one family, their precision and their FLOPs."""
