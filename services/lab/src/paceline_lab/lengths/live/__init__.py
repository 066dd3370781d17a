"""What a running stack says about lengths, against what its engine then writes."""
