"""White-box studies of copies in torch: gradients, outputs under attack, DeepFool on one copy and on several."""
