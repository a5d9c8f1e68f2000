"""The seller's side: from a trained classifier to one sealed copy for each buyer."""
