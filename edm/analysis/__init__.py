"""The paper's studies of the ODE, of its samplers and of its data (Figures 1, 3, 13, 14; Appendix F.2).

Pure functions of denoisers and images: they know nothing of files, of models on disk or of figures.
"""
