"""``python -m helpers.benchmark FOLDER``: measure every pipeline on a folder of images, and say which one to use."""
