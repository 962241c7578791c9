"""Encoders: from recordings to Gaussian beliefs about the latents."""
