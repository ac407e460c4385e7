"""Records of training, tables of results and pictures of reconstructions, each module on its own."""
