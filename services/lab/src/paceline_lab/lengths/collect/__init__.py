"""Real outputs of a real engine, to train and to test length models on."""
