"""The paper's studies of the ODE, its samplers and its data (Figures 1, 3, 13, 14; Appendix F.2).

Functions of denoisers and images, independent of files and plotting, except :mod:`edm.analysis.studies`.
"""
