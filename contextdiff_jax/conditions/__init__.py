"""What a picture is asked to show, one file each: from an example or a request to the networks."""
