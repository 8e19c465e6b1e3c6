"""A network with its preconditioning as one denoiser D(x; sigma): built, saved, loaded, compiled; the ideal one."""
