"""Do estimates that are made before a version serves hold once it does?"""
