"""From a picture to its mask with numpy and one inference engine, never torch."""
