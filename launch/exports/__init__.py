"""Write a run's model as plain files, which `longplay.load` opens."""
