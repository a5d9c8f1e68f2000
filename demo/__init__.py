"""The demo: three buyers, three cars, one attacker."""
