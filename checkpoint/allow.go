package checkpoint

// Allow divides problems into those that stand and the losses of kinds that the user accepts. The former say how they can
// be accepted, if they can.
func Allow(problems []Problem, kinds []string) (stand []Problem, losses []Loss) {
	return allow(problems, kinds)
}
