"""What the lesson "A complete training: style transfer" trains, and ``python -m helpers.style``."""
