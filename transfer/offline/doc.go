// Package offline keeps the journal of a dump and of a restore: what it takes to bring either to its end in another
// process, after the one that began it has died. [Operation] is the one that writes it, [Recover] the one that reads it.
//
// A dump that was cut short leaves the source running and no image; or, if the image is complete and the source's end had
// begun, the image and no source. A restore that was cut short leaves nothing; or, if the service may have been heard
// already, it lives.
package offline
