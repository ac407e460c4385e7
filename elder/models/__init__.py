"""Networks, regularizers, reconstructions, and the Lightning modules that train them."""
