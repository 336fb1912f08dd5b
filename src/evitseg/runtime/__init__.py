"""From an image to its mask with numpy and one inference engine, never torch."""
