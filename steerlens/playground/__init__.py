"""A local page to steer a model by hand. Needs Dash (`pip install steerlens[playground]`)."""
