"Merge a vision-language model with a reasoning language model, from files to files, without training"

__version__ = "0.1.0"
