"""What a version would earn, from auctions that another one wrote: estimates, and how well they hold."""
