"""SecAgg with double masks, dropout recovery and a signed consistency phase (Bonawitz et al. 2017, section 4)."""
