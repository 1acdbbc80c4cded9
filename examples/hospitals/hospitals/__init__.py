"""Hospitals fine-tune one vision-language model together on Flower."""
