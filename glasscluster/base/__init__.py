"""What stands below everything else: facts and small tools that every folder may use and that use no folder."""
