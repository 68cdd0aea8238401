"""What besides the object tells the label: measures of any labelled image dataset, and a page about them."""
