"""The methods. Adding one: write a file like ``lora.py`` and name it in METHODS."""
