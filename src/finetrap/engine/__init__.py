"""The two hot loops: training and answering. Nothing here knows of studies."""
