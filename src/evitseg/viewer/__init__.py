"""A local page on which an image of any size and its mask can be panned and zoomed."""
