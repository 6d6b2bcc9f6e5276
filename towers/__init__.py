"""Where encoders come from: image and text towers as MedCLIP, timm, Hugging Face and open_clip have them.

`parts` says what a source gives; each other file is a source, named in models.SOURCES.
"""
