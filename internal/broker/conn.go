package broker

// conn is what the broker keeps for one connection.
type conn struct{}
