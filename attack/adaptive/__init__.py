"""What an attacker does who knows the design: overshoot, tries, partner classes, collusion, clones."""
