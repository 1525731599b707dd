"""Where results go: a unit is encoded whole and published by one conditional write."""
